"""The mathematics: pure functions over pytrees of arrays."""
