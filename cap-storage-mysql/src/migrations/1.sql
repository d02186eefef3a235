-- Version 1: CAP's tables with our columns after them, and two small ones. Tables that .NET CAP (8 to 10) has left are
-- taken over: stop it first. Its times have no zone; they are read as UTC, or in the zone that @cap_time_zone names
-- (SET @cap_time_zone = '+02:00', or a name if the server has the tables of time zones).
--
-- MySQL commits with each statement that defines something. So each one here may be run again: it is skipped, or changes
-- nothing, if it was carried out before.

CREATE TABLE IF NOT EXISTS {published} (
    `Id`         BIGINT         NOT NULL AUTO_INCREMENT,
    `Version`    VARCHAR(20)    NULL,
    `Name`       VARCHAR(200)   NOT NULL,
    `Content`    LONGTEXT       NULL,
    `Retries`    INT            NULL,
    `Added`      DATETIME(6)    NOT NULL,
    `ExpiresAt`  DATETIME(6)    NULL,
    `StatusName` VARCHAR(50)    NOT NULL,
    `MessageId`  VARBINARY(128) NULL,
    `DueAt`      DATETIME(6)    NULL,
    `Owner`      BINARY(16)     NULL,
    `Claim`      BINARY(16)     NULL,
    `Reason`     LONGTEXT       NULL,
    PRIMARY KEY (`Id`),
    UNIQUE KEY `published_message` (`MessageId`),
    KEY `published_due` (`Version`, `DueAt`, `Id`),
    KEY `published_owner` (`Owner`),
    KEY `published_expired` (`ExpiresAt`)
) ENGINE = InnoDB, ROW_FORMAT = DYNAMIC, CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS {received} (
    `Id`         BIGINT         NOT NULL AUTO_INCREMENT,
    `Version`    VARCHAR(20)    NULL,
    `Name`       VARCHAR(400)   NOT NULL,
    `Group`      VARCHAR(200)   NULL,
    `Content`    LONGTEXT       NULL,
    `Retries`    INT            NULL,
    `Added`      DATETIME(6)    NOT NULL,
    `ExpiresAt`  DATETIME(6)    NULL,
    `StatusName` VARCHAR(50)    NOT NULL,
    `MessageId`  VARBINARY(128) NULL,
    `DueAt`      DATETIME(6)    NULL,
    `Owner`      BINARY(16)     NULL,
    `Claim`      BINARY(16)     NULL,
    `Reason`     LONGTEXT       NULL,
    PRIMARY KEY (`Id`),
    UNIQUE KEY `received_message` (`MessageId`, `Group`),
    KEY `received_due` (`Version`, `Group`, `DueAt`, `Id`),
    KEY `received_owner` (`Owner`),
    KEY `received_expired` (`ExpiresAt`)
) ENGINE = InnoDB, ROW_FORMAT = DYNAMIC, CHARACTER SET utf8mb4, COLLATE utf8mb4_bin;

-- CAP's tables: names are compared to the letter, times are finer than a second, addresses are the database's. Its own
-- indexes serve its scans of ExpiresAt; it makes them again when it makes its tables.
SET @cap_statement = IF((
    SELECT COUNT(*) FROM information_schema.COLUMNS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{published_name}' AND COLUMN_NAME = 'MessageId'
) > 0, 'DO 0', 'ALTER TABLE {published} ENGINE = InnoDB, ROW_FORMAT = DYNAMIC,
    MODIFY COLUMN `Id` BIGINT NOT NULL AUTO_INCREMENT,
    MODIFY COLUMN `Version` VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
    MODIFY COLUMN `Name` VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY COLUMN `Content` LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
    MODIFY COLUMN `Added` DATETIME(6) NOT NULL,
    MODIFY COLUMN `ExpiresAt` DATETIME(6) NULL,
    MODIFY COLUMN `StatusName` VARCHAR(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    ADD COLUMN `MessageId` VARBINARY(128) NULL,
    ADD COLUMN `DueAt` DATETIME(6) NULL,
    ADD COLUMN `Owner` BINARY(16) NULL,
    ADD COLUMN `Claim` BINARY(16) NULL,
    ADD COLUMN `Reason` LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL');
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;

SET @cap_statement = IF((
    SELECT COUNT(*) FROM information_schema.COLUMNS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{received_name}' AND COLUMN_NAME = 'MessageId'
) > 0, 'DO 0', 'ALTER TABLE {received} ENGINE = InnoDB, ROW_FORMAT = DYNAMIC,
    MODIFY COLUMN `Id` BIGINT NOT NULL AUTO_INCREMENT,
    MODIFY COLUMN `Version` VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
    MODIFY COLUMN `Name` VARCHAR(400) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY COLUMN `Group` VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
    MODIFY COLUMN `Content` LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
    MODIFY COLUMN `Added` DATETIME(6) NOT NULL,
    MODIFY COLUMN `ExpiresAt` DATETIME(6) NULL,
    MODIFY COLUMN `StatusName` VARCHAR(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    ADD COLUMN `MessageId` VARBINARY(128) NULL,
    ADD COLUMN `DueAt` DATETIME(6) NULL,
    ADD COLUMN `Owner` BINARY(16) NULL,
    ADD COLUMN `Claim` BINARY(16) NULL,
    ADD COLUMN `Reason` LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL');
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;

SET @cap_statement = (
    SELECT COALESCE(CONCAT('ALTER TABLE {published} ', GROUP_CONCAT(DISTINCT 'DROP INDEX `', INDEX_NAME, '`')), 'DO 0')
    FROM information_schema.STATISTICS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{published_name}'
      AND INDEX_NAME IN ('IX_ExpiresAt', 'IX_ExpiresAt_StatusName', 'IX_Version_ExpiresAt_StatusName')
);
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;

SET @cap_statement = (
    SELECT COALESCE(CONCAT('ALTER TABLE {received} ', GROUP_CONCAT(DISTINCT 'DROP INDEX `', INDEX_NAME, '`')), 'DO 0')
    FROM information_schema.STATISTICS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{received_name}'
      AND INDEX_NAME IN ('IX_ExpiresAt', 'IX_ExpiresAt_StatusName', 'IX_Version_ExpiresAt_StatusName')
);
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;

-- What waits is due: now, or at the time that CAP kept in ExpiresAt. What CAP had given up stays dead. The assignments
-- are in such an order that none reads what another one has written: MySQL carries them out one after the other.
-- In .NET CAP a published row's id is the message's.
UPDATE {published}
SET `DueAt` = CASE
        WHEN `StatusName` IN ('Delayed', 'Queued') AND `ExpiresAt` IS NOT NULL
        THEN COALESCE(CONVERT_TZ(`ExpiresAt`, COALESCE(@cap_time_zone, '+00:00'), '+00:00'), `ExpiresAt`)
        WHEN `StatusName` IN ('Scheduled', 'Delayed', 'Queued') THEN {now}
        WHEN `StatusName` = 'Failed' AND COALESCE(`Retries`, 0) < 50 THEN {now}
    END,
    `Reason` = CASE
        WHEN `StatusName` = 'Failed' AND COALESCE(`Retries`, 0) < 50
        THEN 'failed in .NET CAP: see cap-exception in the headers'
        WHEN `StatusName` = 'Failed' THEN 'given up by .NET CAP: see cap-exception in the headers'
    END,
    `ExpiresAt` = CASE
        WHEN `StatusName` IN ('Scheduled', 'Delayed', 'Queued') THEN NULL
        WHEN `StatusName` = 'Failed' AND COALESCE(`Retries`, 0) < 50 THEN NULL
        WHEN `StatusName` = 'Failed' THEN COALESCE(`ExpiresAt`, {now} + INTERVAL 15 DAY)
        ELSE `ExpiresAt`
    END,
    `StatusName` = CASE `StatusName` WHEN 'Queued' THEN 'Delayed' ELSE `StatusName` END,
    `MessageId` = CAST(`Id` AS CHAR)
WHERE `MessageId` IS NULL;

UPDATE {received}
SET `DueAt` = CASE
        WHEN `StatusName` IN ('Delayed', 'Queued') AND `ExpiresAt` IS NOT NULL
        THEN COALESCE(CONVERT_TZ(`ExpiresAt`, COALESCE(@cap_time_zone, '+00:00'), '+00:00'), `ExpiresAt`)
        WHEN `StatusName` IN ('Scheduled', 'Delayed', 'Queued') THEN {now}
        WHEN `StatusName` = 'Failed' AND COALESCE(`Retries`, 0) < 50 THEN {now}
    END,
    `Reason` = CASE
        WHEN `StatusName` = 'Failed' AND COALESCE(`Retries`, 0) < 50
        THEN 'failed in .NET CAP: see cap-exception in the headers'
        WHEN `StatusName` = 'Failed' THEN 'given up by .NET CAP: see cap-exception in the headers'
    END,
    `ExpiresAt` = CASE
        WHEN `StatusName` IN ('Scheduled', 'Delayed', 'Queued') THEN NULL
        WHEN `StatusName` = 'Failed' AND COALESCE(`Retries`, 0) < 50 THEN NULL
        WHEN `StatusName` = 'Failed' THEN COALESCE(`ExpiresAt`, {now} + INTERVAL 15 DAY)
        ELSE `ExpiresAt`
    END,
    `StatusName` = CASE `StatusName` WHEN 'Queued' THEN 'Delayed' ELSE `StatusName` END,
    `MessageId` = CONCAT('row-', `Id`)
WHERE `MessageId` IS NULL;

-- A received row has its message's id in the headers of its content, whose name is in camel case if the application's
-- JSON options say so. Deliveries of one message to one group were
-- separate rows there: the first gets the message's id.
UPDATE {received} AS entry
JOIN (
    SELECT `Id`, message,
           ROW_NUMBER() OVER (PARTITION BY CAST(message AS BINARY), `Group` ORDER BY `Added`, `Id`) AS number
    FROM (
        SELECT `Id`, `Added`, `Group`, CASE
            WHEN JSON_VALID(`Content`) = 1
            THEN CASE
                WHEN JSON_TYPE(JSON_EXTRACT(`Content`, '$.Headers."cap-msg-id"')) = 'STRING'
                THEN JSON_UNQUOTE(JSON_EXTRACT(`Content`, '$.Headers."cap-msg-id"'))
                WHEN JSON_TYPE(JSON_EXTRACT(`Content`, '$.headers."cap-msg-id"')) = 'STRING'
                THEN JSON_UNQUOTE(JSON_EXTRACT(`Content`, '$.headers."cap-msg-id"'))
            END
        END AS message
        FROM {received}
    ) AS headers
    WHERE LENGTH(message) BETWEEN 1 AND 128 AND message NOT REGEXP '[[:cntrl:]]'
) AS numbered ON numbered.`Id` = entry.`Id` AND numbered.number = 1
SET entry.`MessageId` = numbered.message
WHERE entry.`MessageId` = CONCAT('row-', entry.`Id`);

SET @cap_statement = IF((
    SELECT COUNT(*) FROM information_schema.STATISTICS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{published_name}' AND INDEX_NAME = 'published_message'
) > 0, 'DO 0', 'ALTER TABLE {published}
    ADD UNIQUE KEY `published_message` (`MessageId`),
    ADD KEY `published_due` (`Version`, `DueAt`, `Id`),
    ADD KEY `published_owner` (`Owner`),
    ADD KEY `published_expired` (`ExpiresAt`)');
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;

SET @cap_statement = IF((
    SELECT COUNT(*) FROM information_schema.STATISTICS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{received_name}' AND INDEX_NAME = 'received_message'
) > 0, 'DO 0', 'ALTER TABLE {received}
    ADD UNIQUE KEY `received_message` (`MessageId`, `Group`),
    ADD KEY `received_due` (`Version`, `Group`, `DueAt`, `Id`),
    ADD KEY `received_owner` (`Owner`),
    ADD KEY `received_expired` (`ExpiresAt`)');
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;
DEALLOCATE PREPARE cap_statement;

CREATE TABLE IF NOT EXISTS {nodes} (
    `Node`       BINARY(16)  NOT NULL PRIMARY KEY,
    `LeaseUntil` DATETIME(6) NOT NULL
) ENGINE = InnoDB;

-- What one node does for all.
CREATE TABLE IF NOT EXISTS {chores} (
    `Chore`     VARBINARY(64) NOT NULL PRIMARY KEY,
    `Node`      BINARY(16)    NOT NULL,
    `HeldUntil` DATETIME(6)   NOT NULL
) ENGINE = InnoDB;
