"""What tests and demos of this and other projects use: conformance suites, small stores, demo images."""
