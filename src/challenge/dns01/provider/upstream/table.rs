//! Made from the source of dns-update 0.6.1:
//! `CERTS_UPDATE_DOCS=1 cargo test --lib -- provider::upstream` writes it.

super::upstream! {
    "alidns" new_alidns (access_key: text, secret_key: text, region: maybe, security_token: maybe, line: maybe, timeout: timeout);
    "arvancloud" new_arvancloud (api_key: text, timeout: timeout);
    "autodns" new_autodns (username: text, password: text, context: maybe_number, timeout: timeout);
    "azuredns" new_azuredns { dns_update::providers::azuredns::AzureDnsConfig, tenant_id: text, client_id: text, client_secret: text, subscription_id: text, resource_group: text, environment: azure, request_timeout: timeout };
    "baiducloud" new_baiducloud (access_key: text, secret_key: text, timeout: timeout);
    "bluecatv2" new_bluecatv2 { dns_update::providers::bluecatv2::BluecatV2Config, server_url: text, username: text, password: text, config_name: text, view_name: text, skip_deploy: flag, request_timeout: timeout };
    "bunny" new_bunny (api_key: text, timeout: timeout);
    "cloudflare" new_cloudflare (secret: text, timeout: timeout);
    "cloudns" new_cloudns (auth_id: maybe, sub_auth_id: maybe, auth_password: text, timeout: timeout);
    "constellix" new_constellix (api_key: text, secret_key: text, timeout: timeout);
    "cpanel" new_cpanel (base_url: text, username: text, token: text, timeout: timeout);
    "ddnss" new_ddnss (key: text, timeout: timeout);
    "desec" new_desec (auth_token: text, timeout: timeout);
    "digitalocean" new_digitalocean (auth_token: text, timeout: timeout);
    "dnsimple" new_dnsimple (auth_token: text, account_id: text, timeout: timeout);
    "dnsmadeeasy" new_dnsmadeeasy (api_key: text, api_secret: text, timeout: timeout);
    "domeneshop" new_domeneshop (api_token: text, api_secret: text, timeout: timeout);
    "dreamhost" new_dreamhost (api_key: text, timeout: timeout);
    "duckdns" new_duckdns (token: text, timeout: timeout);
    "dynu" new_dynu (api_key: text, timeout: timeout);
    "easydns" new_easydns (token: text, key: text, timeout: timeout);
    "edgedns" new_edgedns { dns_update::providers::edgedns::EdgeDnsConfig, host: text, client_token: text, client_secret: text, access_token: text, account_switch_key: maybe, request_timeout: timeout };
    "exoscale" new_exoscale (api_key: text, api_secret: text, timeout: timeout);
    "freemyip" new_freemyip (token: text, timeout: timeout);
    "gandiv5" new_gandiv5 (personal_access_token: text, timeout: timeout);
    "gcore" new_gcore (api_token: text, timeout: timeout);
    "glesys" new_glesys (api_user: text, api_key: text, timeout: timeout);
    "godaddy" new_godaddy (api_key: text, api_secret: text, timeout: timeout);
    "google_cloud_dns" new_google_cloud_dns { dns_update::providers::google_cloud_dns::GoogleCloudDnsConfig, service_account_json: text, project_id: text, managed_zone: maybe, private_zone: flag, impersonate_service_account: maybe, request_timeout: timeout };
    "hetzner" new_hetzner (api_token: text, timeout: timeout);
    "hostingde" new_hostingde (api_key: text, timeout: timeout);
    "hostinger" new_hostinger (api_token: text, timeout: timeout);
    "huaweicloud" new_huaweicloud (access_key: text, secret_key: text, region: text, timeout: timeout);
    // "hurricane": no reader for HashMap<String, String>
    "ibmcloud" new_ibmcloud (username: text, api_key: text, timeout: timeout);
    "infoblox" new_infoblox { dns_update::providers::infoblox::InfobloxConfig, host: text, port: maybe, username: text, password: text, wapi_version: maybe, dns_view: maybe, request_timeout: timeout };
    "infomaniak" new_infomaniak (access_token: text, timeout: timeout);
    "inwx" new_inwx (username: text, password: text, sandbox: flag, timeout: timeout);
    "ionos" new_ionos (api_key: text, timeout: timeout);
    "ipv64" new_ipv64 (api_key: text, timeout: timeout);
    // "joker": no reader for JokerAuth
    "lightsail" new_lightsail { dns_update::providers::lightsail::LightsailConfig, access_key_id: text, secret_access_key: text, session_token: maybe, region: maybe, domain: maybe, request_timeout: timeout };
    "linode" new_linode (auth_token: text, timeout: timeout);
    "luadns" new_luadns (api_username: text, api_token: text, timeout: timeout);
    "mythicbeasts" new_mythicbeasts (username: text, password: text, timeout: timeout);
    "namecheap" new_namecheap (api_user: text, api_key: text, client_ip: text, username: maybe, timeout: timeout);
    "namedotcom" new_namedotcom (username: text, api_token: text, timeout: timeout);
    "namesilo" new_namesilo (api_key: text, timeout: timeout);
    "netcup" new_netcup (customer_number: text, api_key: text, api_password: text, timeout: timeout);
    "netlify" new_netlify (access_token: text, timeout: timeout);
    "nifcloud" new_nifcloud (access_key: text, secret_key: text, timeout: timeout);
    "ns1" new_ns1 (api_key: text, timeout: timeout);
    "oraclecloud" new_oraclecloud { dns_update::providers::oraclecloud::OracleCloudConfig, tenancy_ocid: text, user_ocid: text, fingerprint: text, private_key_pem: text, private_key_password: maybe, region: text, compartment_ocid: text, request_timeout: timeout };
    "ovh" new_ovh (application_key: text, application_secret: text, consumer_key: text, endpoint: word, timeout: timeout);
    "pdns" new_pdns (api_key: text, endpoint: maybe, server_name: maybe, timeout: timeout);
    "plesk" new_plesk (base_url: text, api_key: text, timeout: timeout);
    "porkbun" new_porkbun (api_key: text, secret_api_key: text, timeout: timeout);
    "route53" new_route53 { dns_update::providers::route53::Route53Config, access_key_id: text, secret_access_key: text, session_token: maybe, region: maybe, hosted_zone_id: maybe, private_zone_only: maybe_flag, endpoint: maybe };
    "safedns" new_safedns (auth_token: text, timeout: timeout);
    "scaleway" new_scaleway (api_token: text, timeout: timeout);
    "selectel" new_selectel (username: text, password: text, account_id: text, project_id: text, timeout: timeout);
    "simplycom" new_simplycom (account_name: text, api_key: text, timeout: timeout);
    "spaceship" new_spaceship (api_key: text, api_secret: text, timeout: timeout);
    "tencentcloud" new_tencentcloud (secret_id: text, secret_key: text, region: maybe, session_token: maybe, timeout: timeout);
    "transip" new_transip (login: text, private_key_pem: text, global_key: flag, timeout: timeout);
    "ultradns" new_ultradns (username: text, password: text, endpoint: maybe, timeout: timeout);
    "vercel" new_vercel (auth_token: text, team_id: maybe, timeout: timeout);
    "volcengine" new_volcengine { dns_update::providers::volcengine::VolcengineConfig, access_key: text, secret_key: text, region: maybe, host: maybe, scheme: maybe, request_timeout: timeout };
    "vultr" new_vultr (api_key: text, timeout: timeout);
    "websupport" new_websupport (api_key: text, secret: text, timeout: timeout);
    "yandexcloud" new_yandexcloud { dns_update::providers::yandexcloud::YandexCloudConfig, iam_token_b64: text, folder_id: text, request_timeout: timeout };
    "zoneeu" new_zoneeu (username: text, api_key: text, timeout: timeout);
}
