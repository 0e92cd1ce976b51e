"""Deployable exports of what a store has learned: ONNX graphs, engines, PEFT adapters, and the bundle around them."""
