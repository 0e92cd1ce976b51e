"""Whether graphs that have just been made compute what the backbone does in torch: before they are put in force."""

from __future__ import annotations

from edge_cl.backbone import Backbone
from edge_cl.export.bundle import Bundle, BundleError, PrecisionError
from edge_cl.export.reference import TOLERANCE, Example, pictures
from edge_cl.features import Encoder
from edge_cl.model import Model
from edge_cl.runtime.onnx import OnnxBackend

PICTURES = 2  # a smooth one and a noisy one


def require_parity(bundle: Bundle, model: Model, backbone: Backbone) -> None:
    """Refuse graphs whose features of prefix and base branch are more than rounding off those of torch in fp32.

    An exporter may have been wrong, and half precision too small for what a backbone computes. A picture's features are
    compared as one vector: a class token that is tiny in an early block may be lost in half precision, at no harm.

    Args:
        bundle: whose files are written.
        model: that they were made of.
        backbone: likewise, in single precision, anywhere.

    Raises:
        PrecisionError: they are, or are not finite, in half precision.
        BundleError: the same in single precision.
    """
    images = pictures(PICTURES, model.spec.image_size)
    device = next(backbone.parameters()).device
    torch = Encoder(backbone, model.preprocess, model.shared, model.base, device)
    wanted = torch.encode(images).features
    example = Example({}, {"features": wanted}, wanted.shape[1])
    deviation = example.deviation({"features": OnnxBackend(bundle).encode(images).features})
    limit = TOLERANCE[bundle.manifest.precision]
    if deviation <= limit:
        return
    fault = f"features are {deviation:.1e} off those of torch, more than {limit:.0e}. They were not put in force."
    if bundle.manifest.precision == "fp16":
        fault = f"Half precision is too small for this backbone: the {fault}"
        raise PrecisionError(fault, mend="Export in single precision: --precision fp32")
    fault = f"The graphs of {bundle.path} are wrong: their {fault}"
    raise BundleError(fault, mend="Try another version of torch or onnx.")
