-- Version 2: how many attempts in a row ended with their process. Those with more than none are suspects, which are claimed
-- for themselves. `Suspect` says which they are: the index has them apart, each lane in the order in which it is due.
-- (It is written along with `Crashes`: servers have trouble with indexes on generated columns.)

SET @cap_statement = IF((
    SELECT COUNT(*) FROM information_schema.COLUMNS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{published_name}' AND COLUMN_NAME = 'Crashes'
) > 0, 'DO 0', 'ALTER TABLE {published}
    ADD COLUMN `Crashes` INT NOT NULL DEFAULT 0,
    ADD COLUMN `Suspect` TINYINT NOT NULL DEFAULT 0');
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;

SET @cap_statement = IF((
    SELECT COUNT(*) FROM information_schema.COLUMNS
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{received_name}' AND COLUMN_NAME = 'Crashes'
) > 0, 'DO 0', 'ALTER TABLE {received}
    ADD COLUMN `Crashes` INT NOT NULL DEFAULT 0,
    ADD COLUMN `Suspect` TINYINT NOT NULL DEFAULT 0,
    DROP INDEX `received_due`,
    ADD KEY `received_due` (`Version`, `Group`, `Suspect`, `DueAt`, `Id`)');
PREPARE cap_statement FROM @cap_statement;
EXECUTE cap_statement;
DEALLOCATE PREPARE cap_statement;
