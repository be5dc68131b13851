"""A whole consortium on one machine, behind `synthedge demo`."""
