"""Boards: their profiles, and the probe that recognises the one it runs on."""

from edge_cl.devices.probe import Machine, profile_for, read_machine
from edge_cl.devices.profile import Profile, find_profile, profiles

__all__ = ["Machine", "Profile", "find_profile", "profile_for", "profiles", "read_machine"]
