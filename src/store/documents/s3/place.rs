//! Where the bucket is: `s3://BUCKET/PREFIX`, and AWS's own variables of the environment.

use http::Uri;

use super::super::settings::{ServerSettings, invalid_prefix, is_plain, is_prefix, is_private};

/// The place of the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The URL of the bucket, without a slash at its end.
    pub(super) bucket: String,
    /// The `Host` of a request.
    pub(super) host: String,
    pub(super) region: String,
    /// With a slash at its end, or empty.
    pub(super) prefix: String,
}

impl Place {
    /// # Errors
    /// What is invalid.
    pub(super) fn of(settings: &ServerSettings) -> Result<Self, String> {
        let path = settings.url.strip_prefix("s3://").unwrap_or_default();
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let prefix = prefix.trim_matches('/');
        if path.contains('@') {
            return Err("it has credentials".to_owned());
        }
        if !(3..=63).contains(&bucket.len()) || !is_plain(bucket) {
            return Err(format!("invalid bucket `{}`", bucket.escape_debug()));
        }
        if !is_prefix(prefix) {
            return Err(invalid_prefix(prefix));
        }
        let region =
            { settings.variable("AWS_REGION") }.or_else(|| settings.variable("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or("us-east-1");
        if !region
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err("invalid AWS_REGION".to_owned());
        }
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| Some((name, settings.variable(name)?)));
        let (bucket, host) = match endpoint {
            Some((name, url)) => {
                let host = host_of(url).map_err(|why| format!("{name}: {why}"))?;
                (format!("{}/{bucket}", url.trim_end_matches('/')), host)
            }
            None => of_aws(bucket, region),
        };
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        let region = region.to_owned();
        Ok(Self {
            bucket,
            host,
            region,
            prefix,
        })
    }
}

/// The URL of a bucket at AWS and its host.
fn of_aws(bucket: &str, region: &str) -> (String, String) {
    let china = if region.starts_with("cn-") { ".cn" } else { "" };
    let server = format!("s3.{region}.amazonaws.com{china}");
    match bucket.contains('.') {
        // The certificate is for one label before the server's name.
        true => (format!("https://{server}/{bucket}"), server),
        false => {
            let host = format!("{bucket}.{server}");
            (format!("https://{host}"), host)
        }
    }
}

/// The host and port of an endpoint.
fn host_of(url: &str) -> Result<String, String> {
    let uri: Uri = url.parse().map_err(|_| "invalid URL")?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("the form is https://HOST:PORT".to_owned());
    };
    let is_whole = ["", "/"].contains(&uri.path()) && uri.query().is_none();
    if !is_whole || authority.as_str().contains('@') || !["http", "https"].contains(&scheme) {
        return Err("the form is https://HOST:PORT".to_owned());
    }
    if scheme == "http" && !is_private(authority.host()) {
        let host = authority.host();
        return Err(format!(
            "plain http to {host}, which is not in a private network; use https://"
        ));
    }
    Ok(authority.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::proxy::Proxies;

    fn place(url: &str, variables: &[(&str, &str)]) -> Result<Place, String> {
        let pairs = variables.iter();
        let settings = ServerSettings {
            url: url.to_owned(),
            environment: pairs
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            proxies: Proxies::default(),
            resolver: Default::default(),
        };
        Place::of(&settings)
    }

    #[test]
    fn bucket_is_at_aws_or_at_the_endpoint() {
        let found = place("s3://bucket/a/b/", &[("AWS_REGION", "eu-west-1")]).unwrap();
        assert_eq!(found.bucket, "https://bucket.s3.eu-west-1.amazonaws.com");
        assert_eq!(found.host, "bucket.s3.eu-west-1.amazonaws.com");
        assert_eq!(
            (found.region.as_str(), found.prefix.as_str()),
            ("eu-west-1", "a/b/")
        );
        let found = place("s3://my.bucket", &[]).unwrap();
        assert_eq!(found.bucket, "https://s3.us-east-1.amazonaws.com/my.bucket");
        assert_eq!(found.prefix, "");
        let found = place("s3://bucket", &[("AWS_DEFAULT_REGION", "cn-north-1")]).unwrap();
        assert_eq!(found.host, "bucket.s3.cn-north-1.amazonaws.com.cn");
        let other = ("AWS_ENDPOINT_URL", "https://other.example");
        let own = ("AWS_ENDPOINT_URL_S3", "http://minio:9000/");
        let found = place("s3://bucket/p", &[other, own]).unwrap();
        assert_eq!(found.bucket, "http://minio:9000/bucket");
        assert_eq!(found.host, "minio:9000");
    }

    #[test]
    fn invalid_places_are_refused() {
        for (url, words) in [
            ("s3://", "invalid bucket ``"),
            ("s3://b", "invalid bucket `b`"),
            ("s3:///a", "invalid bucket ``"),
            ("s3://bucket/a//b", "invalid prefix `a//b`"),
            ("s3://bucket/../x", "invalid prefix `../x`"),
            ("s3://b ck/x", "invalid bucket `b ck`"),
            ("s3://key:secret@bucket/x", "it has credentials"),
        ] {
            assert_eq!(place(url, &[]).unwrap_err(), words, "{url}");
        }
        assert!(place("s3://bucket", &[("AWS_REGION", "a.b")]).is_err());
    }

    #[test]
    fn plain_http_stays_in_a_private_network() {
        let at = |url: &str| place("s3://bucket", &[("AWS_ENDPOINT_URL", url)]);
        for url in [
            "http://127.0.0.1:9",
            "http://[::1]:9",
            "http://10.1.2.3",
            "http://[fd00::1]",
            "http://localhost:9",
            "http://minio.storage.svc.cluster.local:9000",
            "https://s3.example.com",
        ] {
            assert!(at(url).is_ok(), "{url}");
        }
        for url in [
            "http://s3.example.com",
            "http://[2001:db8::1]",
            "http://8.8.8.8:9000",
        ] {
            let why = at(url).unwrap_err();
            assert!(why.starts_with("AWS_ENDPOINT_URL: plain http"), "{why}");
        }
        for url in [
            "s3.example.com",
            "ftp://minio",
            "https://u:pw@minio",
            "https://minio/path",
            "https://minio?x",
        ] {
            let why = at(url).unwrap_err();
            assert!(
                why.contains("https://HOST:PORT") && !why.contains("pw"),
                "{why}"
            );
        }
    }
}
