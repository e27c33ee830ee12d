"""The SQL database: tables, group commit, jobs, ledger."""
