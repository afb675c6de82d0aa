"""Studies behind the measurements in docs/measurements.md."""
