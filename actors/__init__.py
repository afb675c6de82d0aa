"""The Ray code of maskmill beside jobs/: thin classes around engine functions."""
