// a colour for every id, unlike its neighbours'
const GOLDEN_ANGLE = 137.508

/** Red, green and blue, 0 to 255. */
export function colourOf(id: number): [number, number, number] {
  const hue = (id * GOLDEN_ANGLE) % 360
  const light = 0.5 + 0.12 * ((id % 3) - 1)
  const swing = 0.85 * Math.min(light, 1 - light)
  const part = (offset: number) => {
    const turn = (offset + hue / 30) % 12
    return Math.round(255 * (light - swing * Math.max(-1, Math.min(turn - 3, 9 - turn, 1))))
  }
  return [part(0), part(8), part(4)]
}
