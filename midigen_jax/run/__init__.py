"""What training and sampling share: checkpoints, hosts, the process."""
