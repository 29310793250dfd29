"""A store of compressed passages: SQLite and safetensors shards."""
