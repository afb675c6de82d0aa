"""The pseudo-label store: versions of labels in Parquet shards, their plans, and selections from them."""
