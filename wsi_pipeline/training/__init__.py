"""Trains what models/ defines."""
