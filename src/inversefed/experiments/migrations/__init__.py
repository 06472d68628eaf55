"""How a ledger's tables came to be, one file a change; Alembic carries them out when a ledger is opened."""
