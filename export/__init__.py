"""Deployable exports of what a store has learned."""

from edge_cl.export.merge import merge_adapters

__all__ = ["merge_adapters"]
