"""A sweep: its grid, the choice among its points, and a whole run in which one point diverges."""
