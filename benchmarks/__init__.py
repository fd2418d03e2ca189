"""The numbers in the README, each measured again by one command: `python -m benchmarks NAME`."""
