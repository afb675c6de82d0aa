"""Measurements behind the documentation's figures."""
