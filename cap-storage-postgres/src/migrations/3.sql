-- Version 3: how many attempts in a row ended with their process. Those with more than none are suspects, which are claimed
-- for themselves and have an index of their own: neither lane reads what the other one holds.

ALTER TABLE {published} ADD COLUMN "Crashes" INT NOT NULL DEFAULT 0;
ALTER TABLE {received} ADD COLUMN "Crashes" INT NOT NULL DEFAULT 0;

DROP INDEX {schema}."received_due";
CREATE INDEX "received_due" ON {received} ("Version", "Group", "DueAt", "Id")
    WHERE "DueAt" IS NOT NULL AND "Crashes" = 0;
CREATE INDEX "received_suspects" ON {received} ("Version", "Group", "DueAt", "Id")
    WHERE "DueAt" IS NOT NULL AND "Crashes" > 0;
