//! Client certificates.

use std::path::PathBuf;

use cap_core::ErrorKind;
use cap_core::storage::Storage;
use cap_storage_postgres::sqlx::{self, AssertSqlSafe, Connection, PgConnection};
use cap_storage_postgres::{PostgresOptions, PostgresStorage};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::support::{Database, PASSWORD, run, server};

/// The files of an authority, a server and a client.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn make() -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        files.write("ca.pem", &authority.self_signed(&authority_key).unwrap().pem());
        let issuer = Issuer::new(authority, authority_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let mut parameters = CertificateParams::new(vec![server().get_host().to_owned()]).unwrap();
            parameters.distinguished_name.push(DnType::CommonName, format!("the {name} of a test"));
            files.write(&format!("{name}.pem"), &parameters.signed_by(&key, &issuer).unwrap().pem());
            files.write(&format!("{name}.key"), &key.serialize_pem());
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Gives a file to the server, which keeps it beside its data.
    async fn give(&self, superuser: &mut PgConnection, name: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        let copy = format!(
            "COPY (SELECT unnest(string_to_array($pem${}$pem$, chr(10)))) TO PROGRAM 'umask 077; cat > cap_test_{name}'",
            text.trim()
        );
        run(superuser, copy).await;
    }
}

/// Whom the server takes the other side for, if the connection is encrypted.
async fn subject(storage: &PostgresStorage) -> Option<String> {
    let ask = "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
    sqlx::query_scalar(ask).fetch_one(storage.pool()).await.unwrap()
}

/// The server is reconfigured, by a superuser: connections that are made meanwhile may be encrypted, too.
#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let (database, files, others) = (Database::create().await, Files::make(), Files::make());
    let mut superuser = PgConnection::connect_with(&server()).await.unwrap();
    for name in ["ca.pem", "server.pem", "server.key"] {
        files.give(&mut superuser, name).await;
    }
    let settings = [
        ("ssl", "on"),
        ("ssl_ca_file", "cap_test_ca.pem"),
        ("ssl_cert_file", "cap_test_server.pem"),
        ("ssl_key_file", "cap_test_server.key"),
    ];
    for (name, value) in settings {
        run(&mut superuser, format!("ALTER SYSTEM SET {name} = '{value}'")).await;
    }
    run(&mut superuser, "SELECT pg_reload_conf()").await;
    let uses_tls = "SELECT current_setting('ssl') = 'on'";
    while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(uses_tls)).fetch_one(&mut superuser).await.unwrap() {
        tokio::task::yield_now().await;
    }

    let outcome = tokio::spawn(async move {
        let plain = PostgresOptions::new(database.url()).ca_file(files.path("ca.pem"));
        let storage = PostgresStorage::connect_with(plain.clone()).await.unwrap();
        assert_eq!(subject(&storage).await, None, "encrypted, and nobody in particular");

        let own = plain.certificate_file(files.path("client.pem")).key_file(files.path("client.key"));
        let storage = PostgresStorage::connect_with(own.clone()).await.unwrap();
        storage.prepare().await.unwrap();
        assert_eq!(subject(&storage).await.as_deref(), Some("/CN=the client of a test"));

        // The same in a URL.
        let [ca, certificate, key] =
            ["ca.pem", "client.pem", "client.key"].map(|name| files.path(name).display().to_string());
        let url = format!("{}?sslmode=verify-full&sslrootcert={ca}&sslcert={certificate}&sslkey={key}", database.url());
        let storage = PostgresStorage::connect(&url).await.unwrap();
        assert_eq!(subject(&storage).await.as_deref(), Some("/CN=the client of a test"));

        let foreign = own.clone().ca_file(others.path("ca.pem"));
        let error = PostgresStorage::connect_with(foreign).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
        assert!(error.to_string().contains("do not trust each other"), "{error}");
        let missing = own.certificate_file("/nowhere/client.pem");
        let error = PostgresStorage::connect_with(missing).await.unwrap_err();
        assert!(error.to_string().contains("file of a certificate"), "{error}");
        assert!(!error.to_string().contains(PASSWORD), "{error}");
        database.drop().await;
    })
    .await;
    for (name, _) in settings {
        run(&mut superuser, format!("ALTER SYSTEM RESET {name}")).await;
    }
    run(&mut superuser, "SELECT pg_reload_conf()").await;
    outcome.unwrap();
}
