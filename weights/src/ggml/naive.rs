//! The encoders once more, one value after the other: what the fast ones are held to.

use half::f16;

use crate::Dtype;

/// As [`super::quantize`], for block types, without its check for overflow.
pub(super) fn quantize(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    let (block, bytes) = dtype.block();
    for (x, out) in values.chunks_exact(block).zip(out.chunks_exact_mut(bytes)) {
        let encoded = match dtype {
            Dtype::Q4_0 => signed_small(x, 4),
            Dtype::Q5_0 => signed_small(x, 5),
            Dtype::Q4_1 => min_small(x, 4),
            Dtype::Q5_1 => min_small(x, 5),
            Dtype::Q8_0 => q8_0(x),
            Dtype::Q2K => q2_k(x),
            Dtype::Q4K => q45_k(x, 4),
            Dtype::Q5K => q45_k(x, 5),
            Dtype::Q3K => q3_k(x),
            Dtype::Q6K => q6_k(x),
            _ => panic!("{dtype} has no twin"),
        };
        out.copy_from_slice(&encoded);
    }
}

/// The nearest integer, ties to even, through the low 23 bits of x + 1.5 · 2²³, as ggml does it.
fn nearest(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits();
    (bits & 0x7f_ffff) as i32 - 0x40_0000
}

/// C's conversion to a byte on x86: of what fits no int, 0.
fn byte(x: f32) -> u8 {
    if x.abs() < 2e9 { x as i32 as u8 } else { 0 }
}

fn half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

fn rounded(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

fn reciprocal(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

fn nibbles(codes: &[u8]) -> Vec<u8> {
    (0..16).map(|j| codes[j] & 15 | codes[j + 16] << 4).collect()
}

fn fifth(codes: &[u8]) -> [u8; 4] {
    let mut bits = 0u32;
    for (i, code) in codes.iter().enumerate() {
        bits |= u32::from(code >> 4 & 1) << i;
    }
    bits.to_le_bytes()
}

fn extreme(x: &[f32]) -> f32 {
    let mut extreme = 0.0f32;
    for &x in x {
        if x.abs() > extreme.abs() {
            extreme = x;
        }
    }
    extreme
}

fn signed_small(x: &[f32], bits: u32) -> Vec<u8> {
    let half_range = (1 << (bits - 1)) as f32;
    let d = extreme(x) / -half_range;
    let inverse = reciprocal(d);
    let codes: Vec<u8> = x.iter().map(|x| byte(x * inverse + half_range + 0.5).min((1 << bits) - 1)).collect();
    let mut out = half(d).to_vec();
    if bits == 5 {
        out.extend(fifth(&codes));
    }
    out.extend(nibbles(&codes));
    out
}

fn min_small(x: &[f32], bits: u32) -> Vec<u8> {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &x in x {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
    }
    let d = (max - min) / ((1 << bits) - 1) as f32;
    let inverse = reciprocal(d);
    let codes: Vec<u8> = x.iter().map(|x| byte((x - min) * inverse + 0.5).min((1 << bits) - 1)).collect();
    let mut out = [half(d), half(min)].concat();
    if bits == 5 {
        out.extend(fifth(&codes));
    }
    out.extend(nibbles(&codes));
    out
}

fn q8_0(x: &[f32]) -> Vec<u8> {
    let mut largest = 0.0f32;
    for &x in x {
        if x.abs() > largest {
            largest = x.abs();
        }
    }
    let d = largest / 127.0;
    let inverse = reciprocal(d);
    let codes = x.iter().map(|x| byte((x * inverse).round()));
    half(d).into_iter().chain(codes).collect()
}

/// Scale, minimum (to be taken away) and codes of a sub-block; `w` its weights.
fn line(x: &[f32], w: &[f32], most: i32, first: f32, last: i32, absolute: bool) -> (f32, f32, Vec<u8>) {
    let (mut min, mut max, mut sum_w, mut sum_x) = (x[0], x[0], w[0], w[0] * x[0]);
    for i in 1..x.len() {
        min = if x[i] < min { x[i] } else { min };
        max = if x[i] > max { x[i] } else { max };
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        return (0.0, -min, vec![0; x.len()]);
    }
    let code = |slope: f32, least: f32, x: f32| nearest(slope * (x - least)).clamp(0, most);
    let error = |scale: f32, least: f32, codes: &[i32]| {
        let mut sum = 0.0;
        for i in 0..x.len() {
            let difference = scale * codes[i] as f32 + least - x[i];
            sum += w[i] * if absolute { difference.abs() } else { difference * difference };
        }
        sum
    };
    let slope = most as f32 / (max - min);
    let mut codes: Vec<i32> = x.iter().map(|&x| code(slope, min, x)).collect();
    let (mut scale, mut least) = (1.0 / slope, min);
    let mut best = error(scale, least, &codes);
    for step in 0..=last {
        let slope = (first + 0.1 * step as f32 + most as f32) / (max - least);
        let tried: Vec<i32> = x.iter().map(|&x| code(slope, least, x)).collect();
        let (mut sum_q, mut sum_qq, mut sum_qx) = (0.0, 0.0, 0.0);
        for i in 0..x.len() {
            let q = tried[i] as f32;
            sum_q += w[i] * q;
            sum_qq += w[i] * q * q;
            sum_qx += w[i] * q * x[i];
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant > 0.0 {
            let mut a = (sum_w * sum_qx - sum_x * sum_q) / determinant;
            let mut b = (sum_qq * sum_x - sum_q * sum_qx) / determinant;
            if b > 0.0 {
                b = 0.0;
                a = sum_qx / sum_qq;
            }
            let found = error(a, b, &tried);
            if found < best {
                (best, scale, least, codes) = (found, a, b, tried);
            }
        }
    }
    (scale, -least, codes.into_iter().map(|code| code as u8).collect())
}

fn greatest(values: &[f32]) -> f32 {
    let mut greatest = 0.0;
    for &value in values {
        if value > greatest {
            greatest = value;
        }
    }
    greatest
}

fn crumbs(codes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 64];
    for (i, code) in codes.iter().enumerate() {
        out[i / 128 * 32 + i % 32] |= code << (i % 128 / 32 * 2);
    }
    out
}

fn q2_k(x: &[f32]) -> Vec<u8> {
    let lines: Vec<_> =
        x.chunks(16).map(|x| line(x, &x.iter().map(|x| x.abs()).collect::<Vec<_>>(), 3, -0.5, 15, true)).collect();
    let scales: Vec<f32> = lines.iter().map(|line| line.0).collect();
    let mins: Vec<f32> = lines.iter().map(|line| line.1).collect();
    let (max_scale, max_min) = (greatest(&scales), greatest(&mins));
    let (mut d, mut dmin, mut packed) = (0.0, 0.0, vec![0u8; 16]);
    if max_scale > 0.0 {
        d = max_scale / 15.0;
        (0..16).for_each(|g| packed[g] = nearest(15.0 / max_scale * scales[g]) as u8);
    }
    if max_min > 0.0 {
        dmin = max_min / 15.0;
        (0..16).for_each(|g| packed[g] |= (nearest(15.0 / max_min * mins[g]) << 4) as u8);
    }
    let mut codes = Vec::new();
    for (g, x) in x.chunks(16).enumerate() {
        let scale = rounded(d) * f32::from(packed[g] & 15);
        let min = rounded(dmin) * f32::from(packed[g] >> 4);
        if scale == 0.0 {
            codes.extend(&lines[g].2);
        } else {
            codes.extend(x.iter().map(|x| nearest((x + min) / scale).clamp(0, 3) as u8));
        }
    }
    [packed, crumbs(&codes), half(d).to_vec(), half(dmin).to_vec()].concat()
}

fn q45_k(x: &[f32], bits: u32) -> Vec<u8> {
    let (most, first, last) = if bits == 4 { (15, -1.0, 20) } else { (31, -0.5, 15) };
    let lines: Vec<_> = x
        .chunks(32)
        .map(|x| {
            let mut squares = 0.0;
            x.iter().for_each(|x| squares += x * x);
            let rms = (squares / 32.0f32).sqrt();
            line(x, &x.iter().map(|x| rms + x.abs()).collect::<Vec<_>>(), most, first, last, false)
        })
        .collect();
    let scales: Vec<f32> = lines.iter().map(|line| line.0).collect();
    let mins: Vec<f32> = lines.iter().map(|line| line.1).collect();
    let (max_scale, max_min) = (greatest(&scales), greatest(&mins));
    let to = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (d, dmin) = (max_scale / 63.0, max_min / 63.0);
    let mut packed = vec![0u8; 12];
    let mut codes = Vec::new();
    for (g, x) in x.chunks(32).enumerate() {
        let sc = (nearest(to(max_scale) * scales[g]) as u8).min(63);
        let m = (nearest(to(max_min) * mins[g]) as u8).min(63);
        if g < 4 {
            packed[g] |= sc;
            packed[g + 4] |= m;
        } else {
            packed[g + 4] |= sc % 16 + m % 16 * 16;
            packed[g - 4] |= sc / 16 * 64;
            packed[g] |= m / 16 * 64;
        }
        let (scale, min) = (rounded(d) * f32::from(sc), rounded(dmin) * f32::from(m));
        if scale == 0.0 {
            codes.extend(&lines[g].2);
        } else {
            codes.extend(x.iter().map(|x| nearest((x + min) / scale).clamp(0, most) as u8));
        }
    }
    let mut out = [half(d).to_vec(), half(dmin).to_vec(), packed].concat();
    if bits == 5 {
        let mut high = vec![0u8; 32];
        (0..256).for_each(|i| high[i % 32] |= (codes[i] / 16) << (i / 32));
        out.extend(high);
    }
    out.extend((0..128).map(|i| codes[i / 32 * 64 + i % 32] % 16 + codes[i / 32 * 64 + i % 32 + 32] % 16 * 16));
    out
}

/// The scale of largest magnitude.
fn leading(scales: &[f32]) -> f32 {
    extreme(scales)
}

fn q6_k(x: &[f32]) -> Vec<u8> {
    let (mut scales, mut fitted) = (Vec::new(), Vec::new());
    for x in x.chunks(16) {
        let extreme = extreme(x);
        if extreme.abs() < 1e-15 {
            scales.push(0.0);
            fitted.extend([0; 16]);
            continue;
        }
        let attempt = |slope: f32| {
            let codes: Vec<i32> = x.iter().map(|x| nearest(slope * x).clamp(-32, 31)).collect();
            let (mut xq, mut qq) = (0.0, 0.0);
            for (x, &code) in x.iter().zip(&codes) {
                let w = x * x;
                xq += w * x * code as f32;
                qq += w * code as f32 * code as f32;
            }
            (codes, xq, qq)
        };
        let (mut codes, xq, qq) = attempt(-32.0 / extreme);
        let mut scale = if qq != 0.0 { xq / qq } else { 0.0 };
        let mut best = scale * xq;
        for t in (-9..=9).filter(|&t| t != 0) {
            let (tried, xq, qq) = attempt(-(32.0 + 0.1 * t as f32) / extreme);
            if qq > 0.0 && xq * xq > best * qq {
                (codes, scale) = (tried, xq / qq);
                best = scale * xq;
            }
        }
        scales.push(scale);
        fitted.extend(codes.iter().map(|code| (code + 32) as u8));
    }
    let leading = leading(&scales);
    if leading.abs() < 1e-15 {
        return vec![0; 210];
    }
    let to_code = -128.0 / leading;
    let d = 1.0 / to_code;
    let mut packed = Vec::new();
    for (g, x) in x.chunks(16).enumerate() {
        let sc = nearest(to_code * scales[g]).min(127) as i8;
        packed.push(sc as u8);
        let scale = rounded(d) * f32::from(sc);
        if scale != 0.0 {
            (0..16).for_each(|i| fitted[16 * g + i] = (nearest(x[i] / scale).clamp(-32, 31) + 32) as u8);
        }
    }
    let (mut low, mut high) = (vec![0u8; 128], vec![0u8; 64]);
    for (i, code) in fitted.iter().enumerate() {
        let (half_block, run, j) = (i / 128, i % 128 / 32, i % 32);
        low[half_block * 64 + run % 2 * 32 + j] |= (code & 15) << (run / 2 * 4);
        high[half_block * 32 + j] |= (code >> 4) << (run * 2);
    }
    [low, high, packed, half(d).to_vec()].concat()
}

fn q3_k(x: &[f32]) -> Vec<u8> {
    let (mut scales, mut codes) = (Vec::new(), Vec::new());
    for x in x.chunks(16) {
        let extreme = extreme(x);
        if extreme.abs() < 1e-15 {
            scales.push(0.0);
            codes.extend([0; 16]);
            continue;
        }
        let mut q: Vec<i32> = x.iter().map(|x| nearest(-4.0 / extreme * x).clamp(-4, 3)).collect();
        let (mut xq, mut qq) = (0.0, 0.0);
        for (x, &q) in x.iter().zip(&q) {
            xq += x * x * x * q as f32;
            qq += x * x * q as f32 * q as f32;
        }
        for _ in 0..5 {
            let mut changed = false;
            for (x, q) in x.iter().zip(&mut q) {
                let w = x * x;
                let mut other_xq = xq - w * x * *q as f32;
                if other_xq > 0.0 {
                    let mut other_qq = qq - w * *q as f32 * *q as f32;
                    let wanted = nearest(x * other_qq / other_xq).clamp(-4, 3);
                    if wanted != *q {
                        other_xq += w * x * wanted as f32;
                        other_qq += w * wanted as f32 * wanted as f32;
                        if other_qq > 0.0 && other_xq * other_xq * qq > xq * xq * other_qq {
                            (*q, xq, qq, changed) = (wanted, other_xq, other_qq, true);
                        }
                    }
                }
            }
            if !changed {
                break;
            }
        }
        scales.push(if qq > 0.0 { xq / qq } else { 0.0 });
        codes.extend(q.iter().map(|q| (q + 4) as u8));
    }
    let leading = leading(&scales);
    let to_code = -32.0 / leading;
    let d = if leading != 0.0 { 1.0 / to_code } else { 0.0 };
    let mut packed = vec![0u8; 12];
    for (g, x) in x.chunks(16).enumerate() {
        let mut sc = 0;
        if leading != 0.0 {
            sc = (i32::from(nearest(to_code * scales[g]) as i8).clamp(-32, 31) + 32) as u8;
        }
        packed[g % 8] |= (sc % 16) << (g / 8 * 4);
        packed[8 + g % 4] |= (sc / 16) << (g / 4 * 2);
        let scale = rounded(d) * (f32::from(sc) - 32.0);
        if scale != 0.0 {
            (0..16).for_each(|i| codes[16 * g + i] = (nearest(x[i] / scale).clamp(-4, 3) + 4) as u8);
        }
    }
    let mut masks = vec![0u8; 32];
    for (i, code) in codes.iter_mut().enumerate() {
        masks[i % 32] |= (*code / 4) << (i / 32);
        *code %= 4;
    }
    [masks, crumbs(&codes), packed, half(d).to_vec()].concat()
}
