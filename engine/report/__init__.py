"""Report of a store of labels: one HTML page, and notes on their quality."""
