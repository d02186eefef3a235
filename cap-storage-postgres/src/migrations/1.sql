-- Version 1: CAP's tables with our columns after them. Tables that .NET CAP (8 to 10) has left are taken over: stop it
-- first. Its times have no zone; they are read as UTC, or in the zone that the setting `cap.time_zone` names
-- (SET cap.time_zone = 'Europe/Berlin').

CREATE TABLE IF NOT EXISTS {published} (
    "Id"         BIGINT       NOT NULL PRIMARY KEY,
    "Version"    VARCHAR(20)  NOT NULL,
    "Name"       VARCHAR(200) NOT NULL,
    "Content"    TEXT,
    "Retries"    INT          NOT NULL,
    "Added"      TIMESTAMP    NOT NULL,
    "ExpiresAt"  TIMESTAMP,
    "StatusName" VARCHAR(50)  NOT NULL
);

CREATE TABLE IF NOT EXISTS {received} (
    "Id"         BIGINT       NOT NULL PRIMARY KEY,
    "Version"    VARCHAR(20)  NOT NULL,
    "Name"       VARCHAR(200) NOT NULL,
    "Group"      VARCHAR(200),
    "Content"    TEXT,
    "Retries"    INT          NOT NULL,
    "Added"      TIMESTAMP    NOT NULL,
    "ExpiresAt"  TIMESTAMP,
    "StatusName" VARCHAR(50)  NOT NULL
);

LOCK TABLE {published}, {received} IN ACCESS EXCLUSIVE MODE;

ALTER TABLE {published}
    ADD COLUMN "MessageId" TEXT COLLATE "C" DEFAULT NULL,
    ADD COLUMN "DueAt"     TIMESTAMPTZ      DEFAULT NULL,
    ADD COLUMN "Owner"     UUID             DEFAULT NULL,
    ADD COLUMN "Claim"     UUID             DEFAULT NULL,
    ADD COLUMN "Reason"    TEXT             DEFAULT NULL;

ALTER TABLE {received}
    ADD COLUMN "MessageId" TEXT COLLATE "C" DEFAULT NULL,
    ADD COLUMN "DueAt"     TIMESTAMPTZ      DEFAULT NULL,
    ADD COLUMN "Owner"     UUID             DEFAULT NULL,
    ADD COLUMN "Claim"     UUID             DEFAULT NULL,
    ADD COLUMN "Reason"    TEXT             DEFAULT NULL;

-- CAP's snowflake ids begin at 2^50 and go up to 2^63, each node in a band of its own. Ours stay below 2^50: they meet
-- none of those that are there, nor any that a .NET node would still make. That is enough for 35 years at a million a
-- second.
CREATE SEQUENCE {schema}."published_Id" MAXVALUE 1125899906842623 OWNED BY {published}."Id";
CREATE SEQUENCE {schema}."received_Id" MAXVALUE 1125899906842623 OWNED BY {received}."Id";
SELECT setval('{schema}."published_Id"', greatest(coalesce(max("Id"), 0), 0) + 1, false)
FROM {published} WHERE "Id" < 1125899906842623;
SELECT setval('{schema}."received_Id"', greatest(coalesce(max("Id"), 0), 0) + 1, false)
FROM {received} WHERE "Id" < 1125899906842623;
ALTER TABLE {published} ALTER COLUMN "Id" SET DEFAULT nextval('{schema}."published_Id"');
ALTER TABLE {received} ALTER COLUMN "Id" SET DEFAULT nextval('{schema}."received_Id"');

-- In .NET CAP a published row's id is the message's; a received row has its message's id in the headers of its content.
-- Deliveries of one message to one group were separate rows there: the first keeps the message's id.
UPDATE {published} SET "MessageId" = "Id"::text;

WITH known AS (
    SELECT "Id", nullif(substring("Content" FROM '"cap-msg-id"[[:space:]]*:[[:space:]]*"([^"[:cntrl:]]{1,128})"'), '')
           AS message_id
    FROM {received}
), numbered AS (
    SELECT entry."Id", known.message_id,
           row_number() OVER (PARTITION BY known.message_id, entry."Group" ORDER BY entry."Added", entry."Id") AS number
    FROM {received} AS entry JOIN known ON known."Id" = entry."Id"
)
UPDATE {received} AS entry
SET "MessageId" = CASE
        WHEN number = 1 AND strpos(message_id, chr(92)) = 0 AND octet_length(message_id) <= 128 THEN message_id
        ELSE 'row-' || entry."Id"
    END
FROM numbered WHERE numbered."Id" = entry."Id";

-- What waits is due: now, or at the time that CAP kept in ExpiresAt. What CAP had given up stays dead.
UPDATE {published}
SET "DueAt" = CASE
        WHEN "StatusName" IN ('Delayed', 'Queued') AND "ExpiresAt" IS NOT NULL
        THEN "ExpiresAt" AT TIME ZONE coalesce(nullif(current_setting('cap.time_zone', true), ''), 'UTC')
        ELSE {now}
    END,
    "StatusName" = CASE "StatusName" WHEN 'Queued' THEN 'Delayed' ELSE "StatusName" END,
    "ExpiresAt" = NULL,
    "Reason" = CASE "StatusName" WHEN 'Failed' THEN 'failed in .NET CAP: see cap-exception in the headers' END
WHERE "StatusName" IN ('Scheduled', 'Delayed', 'Queued') OR ("StatusName" = 'Failed' AND "Retries" < 50);

UPDATE {received}
SET "DueAt" = CASE
        WHEN "StatusName" IN ('Delayed', 'Queued') AND "ExpiresAt" IS NOT NULL
        THEN "ExpiresAt" AT TIME ZONE coalesce(nullif(current_setting('cap.time_zone', true), ''), 'UTC')
        ELSE {now}
    END,
    "StatusName" = CASE "StatusName" WHEN 'Queued' THEN 'Delayed' ELSE "StatusName" END,
    "ExpiresAt" = NULL,
    "Reason" = CASE "StatusName" WHEN 'Failed' THEN 'failed in .NET CAP: see cap-exception in the headers' END
WHERE "StatusName" IN ('Scheduled', 'Delayed', 'Queued') OR ("StatusName" = 'Failed' AND "Retries" < 50);

UPDATE {published}
SET "Reason" = 'given up by .NET CAP: see cap-exception in the headers',
    "ExpiresAt" = coalesce("ExpiresAt", {utc} + interval '15 days')
WHERE "StatusName" = 'Failed' AND "DueAt" IS NULL;

UPDATE {received}
SET "Reason" = 'given up by .NET CAP: see cap-exception in the headers',
    "ExpiresAt" = coalesce("ExpiresAt", {utc} + interval '15 days')
WHERE "StatusName" = 'Failed' AND "DueAt" IS NULL;

-- CAP's own indexes serve its scans of ExpiresAt; those of 8.3 include the content, which then must not be large.
DROP INDEX IF EXISTS {schema}."idx_published_ExpiresAt_StatusName", {schema}."idx_received_ExpiresAt_StatusName",
    {schema}."idx_published_Version_ExpiresAt_StatusName", {schema}."idx_received_Version_ExpiresAt_StatusName";

CREATE UNIQUE INDEX "published_message" ON {published} ("MessageId");
CREATE INDEX "published_due" ON {published} ("Version", "DueAt", "Id") WHERE "DueAt" IS NOT NULL;
CREATE INDEX "published_owner" ON {published} ("Owner") WHERE "Owner" IS NOT NULL;
CREATE INDEX "published_expired" ON {published} ("ExpiresAt") WHERE "ExpiresAt" IS NOT NULL;

CREATE UNIQUE INDEX "received_message" ON {received} ("MessageId", "Group");
CREATE INDEX "received_due" ON {received} ("Version", "Group", "DueAt", "Id") WHERE "DueAt" IS NOT NULL;
CREATE INDEX "received_owner" ON {received} ("Owner") WHERE "Owner" IS NOT NULL;
CREATE INDEX "received_expired" ON {received} ("ExpiresAt") WHERE "ExpiresAt" IS NOT NULL;

CREATE TABLE {nodes} (
    "Node"       UUID        NOT NULL PRIMARY KEY,
    "LeaseUntil" TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50);

-- Each record is updated twice in its life, and its row moves: room for that in its page, and a vacuum that keeps up.
ALTER TABLE {published} SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE {received} SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_scale_factor = 0.05);
