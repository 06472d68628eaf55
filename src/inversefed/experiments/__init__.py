"""Many audits: what (`plan`), what is done (`ledger`), where it runs (`local`, `ray_cluster`), and the `table` of it.

    plan --cells--> scenarios --hash--> jobs in the ledger --claim--> audit --one transaction--> result

A job is a scenario, known by its hash: written twice it is one job, and its result is kept once. Everything that has
to survive a killed process is in the ledger or in a file that was written whole.
"""
