"""User studies: pages with questions for participants, and statistics of their responses.
The command is scripts/user_study.py."""
