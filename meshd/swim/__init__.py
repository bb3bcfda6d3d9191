"""Who is alive: SWIM with Lifeguard, without I/O."""
