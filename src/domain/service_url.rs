//! URLs of services that the operator names: the key server of an issuer, the receiver of
//! notifications.

use http::Uri;

/// Reads an absolute URL of https, or of http on loopback, without user or password.
///
/// # Errors
///
/// The problem and its remedy, without the URL.
pub fn parse(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| "is not a URL")?;
    let authority = url
        .authority()
        .ok_or("is not an absolute URL; give https://HOST/PATH")?;
    if authority.as_str().contains('@') {
        return Err("contains a user or password; give a URL without");
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let is_loopback = match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost",
    };
    match url.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if is_loopback => Ok(url),
        Some("http") => Err("is not encrypted; use https (http only on loopback)"),
        _ => Err("has another scheme than https"),
    }
}
