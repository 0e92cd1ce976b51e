"""Adapters: the same as PEFT's LoRA on the same weights, and the promises CL-LoRA makes about them."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import Tensor, nn

from edge_cl.backbone import Backbone
from edge_cl.lora import QUERY, VALUE, AdaptedLinear, Adapter

WIDTH, R = 64, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(adapter: Adapter) -> Adapter:
    """Return the adapter with an up projection as training might leave it."""
    with torch.no_grad():
        adapter.B.normal_(0, 0.2, generator=generator(7))
    return adapter


def shared_and_task() -> tuple[Adapter, Adapter]:
    return (
        trained(Adapter.new_shared(3, WIDTH, R, generator(1))),
        trained(Adapter.new_task(3, 3, WIDTH, R, generator(2))),
    )


def peft_model(vit: nn.Module, adapters: tuple[Adapter, ...]) -> nn.Module:
    """Return the ViT with PEFT's LoRA of rank 2r on the fused projection, holding our factors."""
    config = peft.LoraConfig(r=2 * R, lora_alpha=2 * R, target_modules=["qkv"], lora_dropout=0.0)
    model: nn.Module = peft.get_peft_model(vit, config).base_model.model.double()
    for i, block in enumerate(model.blocks):
        down, up = next(factors for adapter in adapters if (factors := adapter.factors(i)) is not None)
        block.attn.qkv.lora_A["default"].weight.data.copy_(down.detach())
        block.attn.qkv.lora_B["default"].weight.data.copy_(up.detach())
    return model


def test_outputs_and_gradients_are_peft_s(tiny_backbone: Backbone) -> None:
    plain = copy.deepcopy(tiny_backbone.vit)
    for block in plain.blocks:  # the layer PEFT wraps is timm's own
        linear = nn.Linear(WIDTH, 3 * WIDTH)
        linear.weight, linear.bias = block.attn.qkv.weight, block.attn.qkv.bias
        block.attn.qkv = linear
    backbone = tiny_backbone.double()
    shared, task = (adapter.double() for adapter in shared_and_task())
    reference = peft_model(plain, (shared, task))
    pixels = torch.randn(2, 3, 32, 32, generator=generator(), dtype=torch.float64)

    ours = backbone.final_norm(backbone.suffix(backbone.prefix(pixels, shared), task))
    theirs = reference.forward_features(pixels)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    bare = backbone.final_norm(backbone.suffix(backbone.prefix(pixels)))
    assert (ours - bare).abs().max() > 0.1

    direction = torch.randn(ours.shape, generator=generator(3), dtype=torch.float64)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    for i, block in enumerate(reference.blocks):
        adapter, j = (shared, i) if i < 3 else (task, i - 3)
        down, up = (getattr(block.attn.qkv, name)["default"].weight.grad for name in ("lora_A", "lora_B"))
        up_q, up_v = up[:WIDTH, :R], up[2 * WIDTH :, R:]
        for which, gradient in ((QUERY, up_q), (VALUE, up_v)):
            mu, B = adapter.mu[j, which].detach(), adapter.B[j, which].detach()
            assert adapter.B.grad is not None
            torch.testing.assert_close(adapter.B.grad[j, which], mu * gradient, rtol=1e-9, atol=1e-11)
            if adapter is task:
                assert adapter.A.grad is not None
                assert adapter.log_mu.grad is not None
                part = down[:R] if which == QUERY else down[R:]
                torch.testing.assert_close(adapter.A.grad[j, which], part, rtol=1e-9, atol=1e-11)
                torch.testing.assert_close(adapter.log_mu.grad[j, which], (mu * B * gradient).sum())
    assert shared.A.grad is None
    assert shared.log_mu.grad is None


@pytest.mark.parametrize("kind", ["shared", "task"])
def test_new_adapter_changes_nothing(tiny_backbone: Backbone, kind: str) -> None:
    new = {
        "shared": Adapter.new_shared(6, WIDTH, R, generator()),
        "task": Adapter.new_task(0, 6, WIDTH, R, generator()),
    }
    tokens = torch.randn(2, 5, WIDTH, generator=generator())
    bare = tiny_backbone.run_blocks(tokens, range(6), None)
    assert torch.equal(tiny_backbone.run_blocks(tokens, range(6), new[kind]), bare)
    assert not torch.equal(tiny_backbone.run_blocks(tokens, range(6), trained(new[kind])), bare)
    assert torch.equal(tiny_backbone.run_blocks(tokens, range(6), None), bare)  # nothing stays behind


def test_factors_are_the_delta_of_query_and_value() -> None:
    _, task = shared_and_task()
    factors = task.factors(4)
    assert factors is not None
    down, up = factors
    assert (down.shape, up.shape) == ((2 * R, WIDTH), (3 * WIDTH, 2 * R))
    delta = up @ down
    for which, rows in ((QUERY, delta[:WIDTH]), (VALUE, delta[2 * WIDTH :])):
        torch.testing.assert_close(rows, task.log_mu[1, which].exp() * (task.B[1, which] @ task.A[1, which]))
    assert torch.equal(delta[WIDTH : 2 * WIDTH], torch.zeros(WIDTH, WIDTH))


@pytest.mark.parametrize(("block", "adapted"), [(-1, False), (2, False), (3, True), (5, True), (6, False)])
def test_factors_exist_for_the_adapted_blocks_alone(block: int, adapted: bool) -> None:
    _, task = shared_and_task()
    assert (task.factors(block) is not None) == adapted


def test_keys_are_untouched(tiny_backbone: Backbone) -> None:
    _, task = shared_and_task()
    seen: list[Tensor] = []
    tiny_backbone.blocks[3].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens = torch.randn(2, 5, WIDTH, generator=generator())
    for adapter in (None, task):
        tiny_backbone.run_blocks(tokens, range(3, 4), adapter)
    (q, k, v), (q_adapted, k_adapted, v_adapted) = (output.split(WIDTH, dim=-1) for output in seen)
    assert torch.equal(k, k_adapted)
    assert (q - q_adapted).abs().max() > 0.01
    assert (v - v_adapted).abs().max() > 0.01


def test_shared_down_projection_is_fixed_with_orthonormal_rows() -> None:
    shared = Adapter.new_shared(3, WIDTH, R, generator(5))
    torch.testing.assert_close(shared.A @ shared.A.mT, torch.eye(R).expand(3, 2, R, R), atol=1e-6, rtol=0)
    assert [name for name, p in shared.named_parameters() if p.requires_grad] == ["B"]
    assert torch.equal(shared.mu, torch.ones(3, 2))
    assert torch.equal(shared.A, Adapter.new_shared(3, WIDTH, R, generator(5)).A)
    assert not torch.equal(shared.A[0], shared.A[1])


def test_task_adapter_starts_as_described() -> None:
    task = Adapter.new_task(3, 50, WIDTH, R, generator())
    assert (task.first, task.depth, task.r) == (3, 50, R)
    assert all(p.requires_grad for p in task.parameters())
    assert task.A.abs().max() <= WIDTH**-0.5
    assert task.A.std().item() == pytest.approx(WIDTH**-0.5 / 3**0.5, rel=0.05)  # uniform
    assert 0.5 <= task.mu.min().item() < 0.6
    assert 1.4 < task.mu.max().item() <= 1.5


def test_mu_stays_positive_whatever_the_optimiser_does() -> None:
    _, task = shared_and_task()
    optimiser = torch.optim.SGD(task.parameters(), lr=5.0, momentum=0.9)
    before = task.mu.detach().clone()
    for _ in range(5):
        optimiser.zero_grad()
        task.mu.sum().backward()  # asks for a mu below zero
        optimiser.step()
    assert (task.mu > 0).all()
    assert (task.mu < before).all()


@pytest.mark.parametrize("shared", [True, False])
def test_stored_tensors_come_back(shared: bool) -> None:
    adapter = shared_and_task()[0 if shared else 1]
    tensors = adapter.to_numpy()
    assert {name: value.shape for name, value in tensors.items()} == {
        "A": (3, 2, R, WIDTH),
        "B": (3, 2, WIDTH, R),
        "log_mu": (3, 2),
    }
    again = Adapter.from_numpy(adapter.first, tensors, shared=shared)
    for name, value in tensors.items():
        assert torch.equal(getattr(again, name), getattr(adapter, name))
        value[:] = 0  # neither adapter shares memory with what is stored
        assert torch.equal(getattr(again, name), getattr(adapter, name))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in adapter.parameters()]
    assert (again.first, again.depth, again.r, again.shared) == (adapter.first, 3, R, shared)


@pytest.mark.parametrize("bias", [True, False])
def test_adapted_linear_holds_the_very_parameters(bias: bool) -> None:
    linear = nn.Linear(2, 3, bias=bias)
    layer = AdaptedLinear.of(linear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert (layer.in_features, layer.out_features) == (2, 3)
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(layer(x), linear(x))
    layer.low_rank = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0], [-2.0]])
    torch.testing.assert_close(layer(x), linear(x) + torch.tensor([[11.0, 0.0, -22.0]]))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), linear(x) + torch.tensor([[11.0, 0.0, -22.0]]))
