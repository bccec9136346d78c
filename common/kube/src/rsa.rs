//! New RSA keys, for pods whose signer knows no other: our TLS library signs with such keys, but makes none.
//!
//! Primes are found as FIPS 186-5 says (probable primes, Miller and Rabin's test); the library checks the finished key
//! when it reads it. The arithmetic takes longer for some numbers than for others: these keys are made for pods of the
//! machine by the machine's kubelet, once each, where nobody can time it. It takes a second or so; call it where that holds up nobody.

use num_bigint::BigUint;
use ring::rand::{SecureRandom, SystemRandom};

use crate::pki::{PkiError, block};

/// The public exponent of every key.
const EXPONENT: u32 = 65537;
/// Rounds of the test: far more than the standard asks for at these sizes, at no cost, since few numbers come so far.
const ROUNDS: usize = 20;
/// Numbers with a factor below this are not worth the test.
const SMALL: u32 = 2000;

/// A new private key with a modulus of `bits` (a multiple of 16), PKCS#8 PEM.
///
/// # Errors
/// The kernel gives no random bytes.
pub(crate) fn new_key(bits: u64) -> Result<String, PkiError> {
    let random = SystemRandom::new();
    let small = small_primes();
    let half = bits / 2;
    loop {
        let (one, other) = (prime(half, &random, &small)?, prime(half, &random, &small)?);
        let (p, q) = if one > other { (one, other) } else { (other, one) };
        // Primes that are near each other give the key away.
        if (&p - &q).bits() <= half - 100 {
            continue;
        }
        if let Some(der) = encode(&p, &q) {
            return Ok(block("PRIVATE KEY", &der));
        }
    }
}

fn number(bits: u64, random: &SystemRandom) -> Result<BigUint, PkiError> {
    let mut bytes = vec![0; usize::try_from(bits / 8).unwrap_or(0)];
    random.fill(&mut bytes).map_err(|_| PkiError::new("generate an RSA key", "the system has no random bytes"))?;
    Ok(BigUint::from_bytes_be(&bytes))
}

/// A prime of exactly `bits`, such that the product of two has twice as many, and to which the exponent is coprime.
fn prime(bits: u64, random: &SystemRandom, small: &[u32]) -> Result<BigUint, PkiError> {
    loop {
        let mut candidate = number(bits, random)?;
        for bit in [bits - 1, bits - 2, 0] {
            candidate.set_bit(bit, true);
        }
        let has_factor = small.iter().any(|p| &candidate % *p == BigUint::ZERO);
        let coprime = (&candidate - 1u32) % EXPONENT != BigUint::ZERO;
        if !has_factor && coprime && is_prime(&candidate, random)? {
            return Ok(candidate);
        }
    }
}

fn small_primes() -> Vec<u32> {
    (3..SMALL).filter(|n| (2..).take_while(|d| d * d <= *n).all(|d| n % d != 0)).collect()
}

/// Miller and Rabin's test of an odd number above [`SMALL`].
fn is_prime(n: &BigUint, random: &SystemRandom) -> Result<bool, PkiError> {
    let one = BigUint::from(1u32);
    let less = n - 1u32;
    let twos = less.trailing_zeros().unwrap_or(0);
    let odd = &less >> twos;
    'rounds: for _ in 0..ROUNDS {
        // Between 2 and n - 2.
        let base = number(n.bits().next_multiple_of(8), random)? % (&less - 2u32) + 2u32;
        let mut x = base.modpow(&odd, n);
        if x == one || x == less {
            continue;
        }
        for _ in 1..twos {
            x = &x * &x % n;
            if x == less {
                continue 'rounds;
            }
        }
        return Ok(false);
    }
    Ok(true)
}

/// The key of two primes, the larger first, as a DER `PrivateKeyInfo`; none where they do not go together.
fn encode(p: &BigUint, q: &BigUint) -> Option<Vec<u8>> {
    let e = BigUint::from(EXPONENT);
    let (p1, q1) = (p - 1u32, q - 1u32);
    let d = e.modinv(&(&p1 * &q1 / gcd(p1.clone(), q1.clone())))?;
    let parts = [BigUint::ZERO, p * q, e, d.clone(), p.clone(), q.clone(), &d % &p1, &d % &q1, q.modinv(p)?];
    let key = der(0x30, &parts.iter().flat_map(integer).collect::<Vec<u8>>());
    // rsaEncryption (1.2.840.113549.1.1.1) without parameters.
    const ALGORITHM: [u8; 15] = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0];
    let whole = [integer(&BigUint::ZERO), ALGORITHM.to_vec(), der(4, &key)].concat();
    Some(der(0x30, &whole))
}

fn gcd(mut a: BigUint, mut b: BigUint) -> BigUint {
    while b != BigUint::ZERO {
        (a, b) = (b.clone(), a % b);
    }
    a
}

fn integer(n: &BigUint) -> Vec<u8> {
    let mut bytes = n.to_bytes_be();
    if bytes[0] & 0x80 != 0 {
        // It would be negative.
        bytes.insert(0, 0);
    }
    der(2, &bytes)
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(n) if n < 0x80 => out.push(n),
        _ => {
            let length = content.len().to_be_bytes();
            let length = &length[length.iter().position(|b| *b != 0).unwrap_or(0)..];
            out.push(0x80 | length.len() as u8);
            out.extend(length);
        }
    }
    out.extend(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_other_numbers() {
        let random = SystemRandom::new();
        let is = |n: BigUint| is_prime(&n, &random).unwrap();
        let two = BigUint::from(2u32);
        for exponent in [31, 61, 89, 107, 127] {
            assert!(is(two.pow(exponent) - 1u32), "2^{exponent}-1");
        }
        for exponent in [67, 83, 97] {
            assert!(!is(two.pow(exponent) - 1u32), "2^{exponent}-1");
        }
        // Carmichael numbers, which deceive simpler tests.
        assert!(!is(BigUint::from(825_265u32)) && !is(BigUint::from(321_197_185u32)));
        let small = small_primes();
        assert_eq!((small[..4].to_vec(), small.len()), (vec![3, 5, 7, 11], 302));
    }

    #[test]
    fn a_key_signs_requests_that_its_public_half_confirms() {
        // Smaller than any that is asked for: the arithmetic is slow in tests.
        let key = new_key(2048).unwrap();
        let der = crate::csr::stub_request(&key).unwrap();
        crate::csr::check_der(&der).unwrap();
        assert!(crate::csr::public_key(&key).unwrap().contains("PUBLIC KEY"));
    }

    #[test]
    fn lengths_are_written_as_der_has_them() {
        assert_eq!(der(4, &[7; 3]), [4, 3, 7, 7, 7]);
        assert_eq!(der(4, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(der(4, &[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!((integer(&BigUint::ZERO), integer(&BigUint::from(128u32))), (vec![2, 1, 0], vec![2, 2, 0, 128]));
    }
}
