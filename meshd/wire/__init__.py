"""Messages <-> sealed datagrams and stream records. Without I/O."""
