-- Version 2: chores, which one node does for all. What a node had is free when the node is forgotten.

CREATE TABLE {chores} (
    "Chore"     TEXT        NOT NULL PRIMARY KEY,
    "Node"      UUID        NOT NULL REFERENCES {nodes} ON DELETE CASCADE,
    "HeldUntil" TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50);
