-- Tables as .NET CAP 8 makes them, with rows of worker 1023, whose ids are close to 2^63.
CREATE TABLE `cap.published` (
    `Id` bigint NOT NULL, `Version` varchar(20) DEFAULT NULL, `Name` varchar(200) NOT NULL, `Content` longtext,
    `Retries` int(11) DEFAULT NULL, `Added` datetime NOT NULL, `ExpiresAt` datetime DEFAULT NULL,
    `StatusName` varchar(40) NOT NULL, PRIMARY KEY (`Id`),
    INDEX `IX_Version_ExpiresAt_StatusName` (`Version`, `ExpiresAt`, `StatusName`),
    INDEX `IX_ExpiresAt_StatusName` (`ExpiresAt`, `StatusName`)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;
CREATE TABLE `cap.received` (
    `Id` bigint NOT NULL, `Version` varchar(20) DEFAULT NULL, `Name` varchar(400) NOT NULL,
    `Group` varchar(200) DEFAULT NULL, `Content` longtext, `Retries` int(11) DEFAULT NULL, `Added` datetime NOT NULL,
    `ExpiresAt` datetime DEFAULT NULL, `StatusName` varchar(50) NOT NULL, PRIMARY KEY (`Id`),
    INDEX `IX_ExpiresAt` (`ExpiresAt`)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4;

INSERT INTO `cap.published` VALUES
(9214364837600034817, 'v1', 'shop.paid',
 '{"Headers":{"cap-callback-name":null,"cap-msg-id":"9214364837600034817","cap-corr-id":"9214364837600034817","cap-corr-seq":"0","cap-msg-name":"shop.paid","cap-msg-type":"Paid","cap-senttime":"07/01/2026 16:02:20"},"Value":{"OrderId":5}}',
 0, '2026-07-01 16:02:20', NULL, 'Scheduled'),
(9214364837600034818, 'v1', 'shop.paid',
 '{"Headers":{"cap-msg-id":"9214364837600034818","cap-msg-name":"shop.paid"},"Value":1}',
 0, '2026-07-01 16:02:21', '2026-07-02 16:02:21', 'Succeeded'),
(9214364837600034819, 'v1', 'shop.paid',
 '{"Headers":{"cap-msg-id":"9214364837600034819","cap-msg-name":"shop.paid","cap-exception":"SocketException--\\u003Erefused"},"Value":2}',
 3, '2026-07-01 16:02:22', '2026-07-16 16:02:22', 'Failed'),
(9214364837600034820, 'v1', 'shop.paid',
 '{"Headers":{"cap-msg-id":"9214364837600034820","cap-msg-name":"shop.paid","cap-exception":"SocketException--\\u003Erefused"},"Value":3}',
 50, '2026-07-01 16:02:23', '2026-07-16 16:02:23', 'Failed'),
(9214364837600034821, 'v1', 'shop.remind',
 '{"Headers":{"cap-msg-id":"9214364837600034821","cap-msg-name":"shop.remind","cap-delaytime":"1.00:00:00"},"Value":4}',
 0, '2026-07-01 16:02:24', '2036-01-01 12:00:00', 'Delayed'),
(9214364837600034822, 'v1', 'shop.remind',
 '{"Headers":{"cap-msg-id":"9214364837600034822","cap-msg-name":"shop.remind","cap-delaytime":"00:00:30"},"Value":5}',
 0, '2020-01-01 11:59:30', '2020-01-01 12:00:00', 'Queued');

INSERT INTO `cap.received` VALUES
(9214364837600099001, 'v1', 'shop.paid', 'billing.v1',
 '{"Headers":{"cap-msg-id":"9214364837600034817","cap-msg-name":"shop.paid","cap-msg-group":"billing.v1"},"Value":{"note":"\\u0022cap-msg-id\\u0022:\\u0022x\\u0022"}}',
 0, '2026-07-01 16:02:25', '2026-07-02 16:02:25', 'Succeeded'),
(9214364837600099002, 'v1', 'shop.paid', 'billing.v1',
 '{"Headers":{"cap-msg-id":"9214364837600034817","cap-msg-name":"shop.paid","cap-msg-group":"billing.v1"},"Value":{}}',
 1, '2026-07-01 16:02:26', NULL, 'Scheduled'),
(9214364837600099003, 'v1', 'shop.paid', 'shipping.v1',
 '{"Headers":{"cap-msg-id":"9214364837600034817","cap-msg-name":"shop.paid","cap-msg-group":"shipping.v1"},"Value":{}}',
 0, '2026-07-01 16:02:27', NULL, 'Scheduled'),
(9214364837600099004, 'v1', 'shop.paid', 'billing.v1', 'no JSON at all', 2, '2026-07-01 16:02:28', NULL, 'Failed'),
(9214364837600099005, 'v1', 'shop.paid', 'billing.v1', NULL, 50, '2026-07-01 16:02:29', NULL, 'Failed');
