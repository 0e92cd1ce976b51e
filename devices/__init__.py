"""Boards: their facts, and the probe that recognises the one it runs on."""

from edge_cl.devices.board import BOARDS, Board, recognise

__all__ = ["BOARDS", "Board", "recognise"]
