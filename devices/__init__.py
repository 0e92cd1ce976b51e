"""Boards: profiles and the probe that recognises them."""
