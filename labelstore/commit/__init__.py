"""Writing to a store: leases, the spool, staged files and the commit that makes them count."""
