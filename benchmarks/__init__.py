"""What produces the speed figures of the README: `make bench`, `make bench-quick`, `make bench-table`."""
