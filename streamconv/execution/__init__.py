"""Carrying out a plan: engines, journal, publication."""
