//! One picture made smaller. It comes from a stranger: nothing is decoded before its header was held against bounds.

use std::io::Cursor;

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageReader, Limits, Rgb, RgbImage, RgbaImage, codecs::jpeg::JpegEncoder,
    metadata::Orientation,
};

/// The longest side in pixels: a tile of 240 CSS pixels on a display of twice the density.
pub(super) const LONGEST: u32 = 480;
/// The quality of the JPEG, of 100. Text of a page stays legible where 480 pixels leave it so.
const QUALITY: u8 = 70;
/// A picture of at most this many bytes goes on as it is: about what a reduced one has.
const SMALL: usize = 16 << 10;
/// A screen of 3840 × 2160. Decoders take up to 12 bytes a pixel: 100 MB a worker at the worst.
const PIXELS: u64 = 3840 * 2160;
/// A side that no screen has. Held against the header before a decoder allocates anything by it.
const SIDE: u32 = 16_384;
/// What a decoder may allocate, as far as it counts it: [`PIXELS`] of 16 bits in four channels.
const ALLOCATED: u64 = 64 << 20;

#[derive(Debug)]
pub(super) enum Reduced {
    /// The original serves: it is small, or would not get smaller.
    AsItIs,
    /// A JPEG.
    Smaller(Vec<u8>),
}

/// Why there is nothing that could be shown instead of a picture.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it has too many pixels")]
    TooManyPixels,
    #[error("it cannot be decoded: {0}")]
    Unreadable(ImageError),
    #[error("the decoder failed")]
    Failed,
}

impl From<ImageError> for Unfit {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Limits(_) => Self::TooManyPixels,
            error => Self::Unreadable(error),
        }
    }
}

/// Makes a picture small enough for a tile of a grid. Never makes it larger.
///
/// # Errors
/// When it cannot be decoded within the bounds. What has few bytes goes on unread all the same, unless it says that it
/// has more pixels than may be decoded: whoever shows it would pay for them.
pub(super) fn reduce(original: &[u8]) -> Result<Reduced, Unfit> {
    let is_small = original.len() <= SMALL;
    let decoder = match open(original) {
        Err(Unfit::Unreadable(_)) if is_small => return Ok(Reduced::AsItIs),
        opened => opened?,
    };
    if is_small {
        return Ok(Reduced::AsItIs);
    }
    let smaller = encode(&scale(decoder)?)?;
    Ok(if smaller.len() < original.len() { Reduced::Smaller(smaller) } else { Reduced::AsItIs })
}

/// Reads the header. Which format it is says its content: the declared media type is a stranger's word too.
fn open(original: &[u8]) -> Result<impl ImageDecoder + '_, Unfit> {
    let mut reader = ImageReader::new(Cursor::new(original)).with_guessed_format().map_err(ImageError::IoError)?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(SIDE), Some(SIDE));
    limits.max_alloc = Some(ALLOCATED);
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS || decoder.total_bytes() > ALLOCATED {
        return Err(Unfit::TooManyPixels);
    }
    Ok(decoder)
}

fn scale(mut decoder: impl ImageDecoder) -> Result<DynamicImage, Unfit> {
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder)?;
    if image.width().max(image.height()) > LONGEST {
        image = image.thumbnail(LONGEST, LONGEST);
    }
    image.apply_orientation(orientation);
    Ok(image)
}

fn encode(image: &DynamicImage) -> Result<Vec<u8>, Unfit> {
    let opaque = if image.color().has_alpha() { on_white(&image.to_rgba8()) } else { image.to_rgb8() };
    let mut jpeg = Vec::new();
    opaque.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY))?;
    Ok(jpeg)
}

/// As a browser shows what is transparent. JPEG knows no transparency, and what is left without it is often black.
fn on_white(image: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0;
        let over_white = |channel: u8| {
            let mixed = (u16::from(channel) * u16::from(alpha) + 255 * u16::from(255 - alpha)) / 255;
            u8::try_from(mixed).expect("a mean of two bytes")
        };
        Rgb([red, green, blue].map(over_white))
    })
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Rgba, codecs::png::PngEncoder};

    use super::*;

    /// Colours that no encoder makes small.
    fn noise(width: u32, height: u32) -> DynamicImage {
        let mut state = 1_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        RgbImage::from_fn(width, height, |_, _| Rgb([byte(), byte(), byte()])).into()
    }

    fn as_format(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn smaller(original: &[u8]) -> DynamicImage {
        let reduced = reduce(original).unwrap();
        let Reduced::Smaller(jpeg) = reduced else { panic!("{reduced:?}") };
        assert!(jpeg.len() < original.len());
        image::load_from_memory_with_format(&jpeg, ImageFormat::Jpeg).unwrap()
    }

    #[test]
    fn every_media_type_becomes_a_jpeg_whose_longest_side_is_as_long_as_a_tile() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            for (width, height, wanted) in [(960, 600, (480, 300)), (300, 1200, (120, 480)), (2000, 2, (480, 1))] {
                let original = as_format(&noise(width, height), format);
                if original.len() <= SMALL {
                    continue;
                }
                let small = smaller(&original);
                assert_eq!((small.width(), small.height()), wanted, "{format:?} {width} × {height}");
            }
        }
    }

    #[test]
    fn it_shows_what_the_original_shows() {
        let mut page = noise(960, 600).into_rgb8();
        for (x, y, pixel) in page.enumerate_pixels_mut() {
            if y > 300 {
                *pixel = if x < 480 { Rgb([250, 10, 10]) } else { Rgb([10, 10, 250]) };
            }
        }
        let small = smaller(&as_format(&page.into(), ImageFormat::Png)).into_rgb8();
        let is = |x, y, wanted: [u8; 3]| {
            let found = small.get_pixel(x, y).0;
            assert!(found.iter().zip(wanted).all(|(found, wanted)| found.abs_diff(wanted) < 12), "{found:?}");
        };
        is(100, 250, [250, 10, 10]);
        is(400, 250, [10, 10, 250]);
    }

    #[test]
    fn nothing_is_made_larger() {
        let original = as_format(&noise(200, 100), ImageFormat::Png);
        assert!(original.len() > SMALL);
        let small = smaller(&original);
        assert_eq!((small.width(), small.height()), (200, 100));
    }

    #[test]
    fn a_small_picture_goes_on_as_it_is_also_when_it_cannot_be_read() {
        let blank: DynamicImage = RgbImage::new(640, 400).into();
        for original in [as_format(&blank, ImageFormat::Png), b"no picture".to_vec(), Vec::new()] {
            assert!(original.len() <= SMALL);
            assert!(matches!(reduce(&original), Ok(Reduced::AsItIs)));
        }
    }

    #[test]
    fn what_would_not_get_smaller_goes_on_as_it_is() {
        let mut coarse = Vec::new();
        let image = noise(480, 300);
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut coarse, 20)).unwrap();
        assert!(coarse.len() > SMALL);
        assert!(matches!(reduce(&coarse), Ok(Reduced::AsItIs)));
    }

    #[test]
    fn large_garbage_and_a_picture_that_is_cut_off_are_unfit() {
        assert!(matches!(reduce(&vec![7; SMALL + 1]), Err(Unfit::Unreadable(_))));
        let whole = as_format(&noise(960, 600), ImageFormat::Png);
        assert!(matches!(reduce(&whole[..whole.len() / 2]), Err(Unfit::Unreadable(_))));
    }

    /// A PNG whose header declares any size, with its checksum right.
    fn declaring(width: u32, height: u32) -> Vec<u8> {
        let mut png = Vec::new();
        let one = RgbImage::new(1, 1);
        one.write_with_encoder(PngEncoder::new(&mut png)).unwrap();
        png[16..20].copy_from_slice(&width.to_be_bytes());
        png[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        png
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
        })
    }

    #[test]
    fn a_bomb_is_not_decoded_however_few_bytes_it_has() {
        assert!(matches!(reduce(&declaring(1, 1)), Ok(Reduced::AsItIs)), "else this shows nothing");
        for (width, height) in [(30_000, 30_000), (SIDE + 1, 1), (3841, 2160), (SIDE, SIDE)] {
            let bomb = declaring(width, height);
            assert!(matches!(reduce(&bomb), Err(Unfit::TooManyPixels)), "{width} × {height}");
        }
    }

    #[test]
    fn what_is_transparent_becomes_white() {
        let mut page = noise(960, 600).into_rgba8();
        for (_, y, pixel) in page.enumerate_pixels_mut() {
            if y > 300 {
                *pixel = Rgba([0, 0, 0, 0]);
            }
        }
        let small = smaller(&as_format(&page.into(), ImageFormat::Png)).into_rgb8();
        assert!(small.get_pixel(240, 250).0.iter().all(|channel| *channel > 245));
    }
}
