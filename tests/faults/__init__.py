"""What a run must survive: kills, requests to stop, full disks, damaged files, bad numbers, lost processes.

`cases` makes the faults and says what did not hold; the tests here run each a few times, and

    python -m tests.faults

runs them in the numbers that are to hold. Case numbers in docstrings are those of RELIABILITY, the list of faults.
"""
