"""What a run leaves: its folder, result records, digests, and what reads and checks them again.
The page made from them is in runner/report/."""
