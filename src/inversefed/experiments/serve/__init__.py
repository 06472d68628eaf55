"""A ledger in the browser: runs with their progress, filters, tables, plots, and each job's report.

    browser --GET, cookie--> guard --> app --SQL--> browse --> templates

The page changes nothing. It listens on this machine only unless told otherwise, and answers those who have its token.
"""
