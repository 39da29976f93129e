"""User studies: pages that ask participants, and statistics of their responses.
The command is scripts/user_study.py."""
