"""Building blocks of networks, rank-generic."""
