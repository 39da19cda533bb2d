"""What everything else stands on: pieces, traced functions, argument checks, numerics, sharding, the target."""
