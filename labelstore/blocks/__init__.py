"""A store read block by block: slabs, columns of their crops and conditions on them; by threads, processes or Dask."""
