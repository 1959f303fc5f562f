"""Uses of private parts of other libraries, one function each.

Each docstring names the upstream versions that the code was read against, the reason, and when the function can be removed.
tests/compat/ holds a contract test for each, and `make compat` runs them against the oldest and newest allowed releases.
"""
