"""Deployable exports of what a store has learned."""
