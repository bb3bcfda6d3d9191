"""What the cluster agrees on: versioned items, networks, addresses. Without I/O."""
