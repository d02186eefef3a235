//! Client certificates.

use std::path::PathBuf;

use cap_core::ErrorKind;
use cap_core::storage::Storage;
use cap_storage_mysql::sqlx::{self, Row};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::outage::Server;

/// The files of an authority, a server and a client.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The server reads them as another user.
        #[cfg(unix)]
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let files = Self { directory };
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        files.write("ca.pem", &authority.self_signed(&authority_key).unwrap().pem());
        let issuer = Issuer::new(authority, authority_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
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
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let (files, others) = (Files::make(), Files::make());
    let [ca, certificate, key] =
        ["ca.pem", "server.pem", "server.key"].map(|name| files.path(name).display().to_string());
    let server = Server::start_with("tls", format!("--ssl-ca={ca} --ssl-cert={certificate} --ssl-key={key}"));
    let plain = MySqlStorage::connect(&server.url()).await.unwrap();
    sqlx::raw_sql("CREATE USER known IDENTIFIED BY 'cap' REQUIRE X509; GRANT ALL ON cap.* TO known")
        .execute(plain.pool())
        .await
        .unwrap();
    let url = server.url().replace("//cap:", "//known:");

    let unknown = MySqlOptions::new(&url).ca_file(files.path("ca.pem"));
    let error = MySqlStorage::connect_with(unknown.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");

    let own = unknown.certificate_file(files.path("client.pem")).key_file(files.path("client.key"));
    let storage = MySqlStorage::connect_with(own.clone()).await.unwrap();
    storage.prepare().await.unwrap();
    let cipher = sqlx::raw_sql("SHOW SESSION STATUS LIKE 'Ssl_cipher'").fetch_one(storage.pool()).await.unwrap();
    assert_ne!(cipher.get::<String, _>(1), "", "it is encrypted");

    // The same in a URL.
    let [certificate, key] = ["client.pem", "client.key"].map(|name| files.path(name).display().to_string());
    let url = format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={ca}&ssl-cert={certificate}&ssl-key={key}");
    MySqlStorage::connect(&url).await.unwrap();

    let foreign = own.clone().ca_file(others.path("ca.pem"));
    let error = MySqlStorage::connect_with(foreign).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("do not trust each other"), "{error}");
    let missing = own.key_file("/nowhere/client.key");
    let error = MySqlStorage::connect_with(missing).await.unwrap_err();
    assert!(error.to_string().contains("file of a certificate"), "{error}");
}
