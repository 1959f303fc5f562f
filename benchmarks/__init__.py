"""What produces the speed figures of docs/performance.md: `make bench`, `make bench-quick`, `make bench-table`."""
